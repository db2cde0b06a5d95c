"""How fast engines are here: cold and warm, beside peers in the same minutes, against the machine's limit; tuning."""
