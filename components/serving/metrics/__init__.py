"""Where the counts of a served model come from, one small file a source."""
