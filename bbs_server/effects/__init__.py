"""What follows a commit: events to the streams, auctions, calls to cells and task callbacks."""
