"""What tests of several kinds start from: every method with its batches, recorded numbers, a pretended device."""
