"""Files that appear whole or not at all, on a disk and in object stores."""
