"""The leaderboard of saliency methods: `wsss compare`."""
