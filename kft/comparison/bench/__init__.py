"""`kft bench`: the same job on each backend, in fresh processes, and what the figures allow to say."""
