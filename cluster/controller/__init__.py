"""The controller: turns membership into shard records. Pure cores, and one shell (`loop`) that runs them."""
