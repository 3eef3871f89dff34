"""Arrays of other libraries, seen as what the native core takes."""
