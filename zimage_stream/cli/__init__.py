"""The command line, and the commands that belong to neither producers nor consumers."""
