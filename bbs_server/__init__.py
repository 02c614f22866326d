"""The Diego BBS: wire → core → store → effects, with the process around them."""
