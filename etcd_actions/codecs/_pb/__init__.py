"""Generated from schemas/ by scripts/generate-schemas."""
