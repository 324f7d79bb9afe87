"""A study as one HTML page; `report` makes it, and no other module here writes anything."""
