"""From what a user names to an open engine set: export and build what is missing, reuse what is there."""
