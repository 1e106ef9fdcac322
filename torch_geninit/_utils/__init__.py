"""What every floor may use: settings of torch, Ctrl-C, strict JSON."""
