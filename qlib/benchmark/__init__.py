"""Many quantizations of many models, measured on many corpora: a study that can be stopped and goes on."""
