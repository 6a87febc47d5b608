"""What a scope leaves behind: the guards, one kind of leak a module."""
