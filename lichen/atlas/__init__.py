"""Real models side by side: sourced facts, prices, what they cost, where they come from, which to pick."""
