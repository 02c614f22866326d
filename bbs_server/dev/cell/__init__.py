"""A cell for development: a faithful client of the BBS that runs actions as plain processes of this machine.

For development only: there is no isolation. A process sees the whole machine, `user`, root file
systems, volumes and egress rules are not applied, and each instance lives in a scratch folder.
"""
