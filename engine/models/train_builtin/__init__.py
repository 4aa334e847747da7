"""How the built-in model that speaks is made: corpus, tokenizer, training. Nothing here runs when Baton serves.

python -m engine.models.train_builtin corpus --out corpus.jsonl.gz
python -m engine.models.train_builtin train --corpus corpus.jsonl.gz --out model --seconds 330
"""
