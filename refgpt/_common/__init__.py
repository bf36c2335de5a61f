"""What every room uses: errors, checks of arguments, small files, words for messages, memory, progress."""
