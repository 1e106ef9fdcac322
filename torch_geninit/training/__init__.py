"""Everything that makes generators and measures them (extra ``[train]``); the init path never imports it."""
