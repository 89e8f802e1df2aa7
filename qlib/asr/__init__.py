"""Speech: audio files, features, transcription, word error rate."""
