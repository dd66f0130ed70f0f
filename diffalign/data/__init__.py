"""The preference-data layer: readers -> records -> transforms -> table -> batches. Text and image rows take the same way."""
