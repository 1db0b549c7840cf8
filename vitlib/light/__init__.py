"""What makes a trained model lighter after training, and how its cost is measured; see ``vitlib.models`` for the rest."""
