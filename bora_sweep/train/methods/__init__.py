"""The methods by which a fit is made, beside the joint MAP fit of `bora_sweep.train.trainer`."""
