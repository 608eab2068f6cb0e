"""How long a whole audit of real photographs takes, and where the minutes go."""
