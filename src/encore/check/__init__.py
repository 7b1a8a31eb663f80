"""Is a track in a model, without unlearning anything? Tests of membership and memorisation, a verdict per track."""
