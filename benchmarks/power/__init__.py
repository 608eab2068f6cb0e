"""What more donors a recipient, both halves in both roles, and a tree of parts would find at equal cost."""
