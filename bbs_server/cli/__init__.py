"""`bbs`: a command line for any BBS, with the verbs, flags and output that users of cfdot know."""
