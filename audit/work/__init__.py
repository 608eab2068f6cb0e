"""Work in pieces: tasks whose results do not depend on who does them, kept on the disk until they are merged."""
