"""One reader a source: what describes a model, translated to this package's names."""
