"""One function per verb of the command line: the only place where config, volumes and models meet."""
