"""What strangers send by mistake or on purpose: nothing stops the engine, all is accounted for."""
