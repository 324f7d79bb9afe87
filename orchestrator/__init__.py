"""How recipes are searched, recorded, compared and promoted; the command line is `orch`."""
