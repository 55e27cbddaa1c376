"""What frozen features are worth: probe, ablation, few labels, floors."""
