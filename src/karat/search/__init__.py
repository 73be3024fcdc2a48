"""Where answers come from, how they are judged, and (to come) how the best of them is found."""
