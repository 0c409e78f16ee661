"""`make branch`: does thinking longer help? The study that docs/evidence.md plans and reports."""
