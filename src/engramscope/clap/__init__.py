"""The study of the CLAP paper, end to end: corpus, fine-tuning, questions, localisation, transplant, one page."""
