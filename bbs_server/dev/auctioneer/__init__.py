"""A small auctioneer: takes the BBS's requests, asks the cells, hands the work out, reports what fits nowhere."""
