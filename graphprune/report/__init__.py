"""Reports: the manifest and tables for people."""
