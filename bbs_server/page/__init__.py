"""The page: a live picture of a fleet in the browser, fed by the event streams of a BBS.

`feed` is where the picture comes from (over the protocol, or inside the server), `model` is the picture,
`broadcast` sends its changes to browsers, `web` serves all of it. `static` is the page itself.
"""

from bbs_server.page.client_feed import ClientFeed
from bbs_server.page.feed import Feed, FeedFailed, Listed, NotThere
from bbs_server.page.local_feed import LocalFeed
from bbs_server.page.web import Actions, Page, routes, start_page

__all__ = [
    "Actions",
    "ClientFeed",
    "Feed",
    "FeedFailed",
    "Listed",
    "LocalFeed",
    "NotThere",
    "Page",
    "routes",
    "start_page",
]
