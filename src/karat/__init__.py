"""karat: one home for reward models. Describe once how text becomes a reward; train, score and evaluate by that."""
