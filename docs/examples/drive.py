"""Desire a task, follow its life by events, fetch the result, delete it."""

import asyncio
import os

from bbs_protos import models_pb2 as models

from bbs_server.client import Client, Failed, Target

TARGET = Target(*(os.environ[name] for name in ("BBS_URL", "CA_CERT_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE")))

run = models.RunAction(path="sh", args=["-c", "sleep 1; date +%Y > result"], user="vcap", log_source="TASK")
definition = models.TaskDefinition(
    root_fs="preloaded:laptop",
    action=models.Action(run_action=run),
    memory_mb=64,
    disk_mb=64,
    result_file="/result",
)


async def main() -> None:
    async with Client(TARGET) as bbs:
        await bbs.upsert_domain("gallery", ttl=0)
        stream = bbs.subscribe("/v1/events/tasks.r1")
        await anext(stream)  # subscribed: nothing that happens from here on is missed
        await bbs.desire_task("driven", "gallery", definition)
        async for event in stream:
            if event.name == "task_created":
                print("created")
            elif event.name == "task_changed":
                print(models.Task.State.Name(event.message.after.state).lower())
                if event.message.after.state == models.Task.Completed:
                    break
        task = await bbs.task("driven")
        print("failed:", task.failed, "result:", task.result.strip())
        await bbs.resolving_task("driven")
        await bbs.delete_task("driven")
        try:
            await bbs.task("driven")
        except Failed as problem:
            print(problem.type_name)


asyncio.run(main())
