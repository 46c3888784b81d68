"""What passes between components: datasets with named column roles, and model directories in safe formats."""
