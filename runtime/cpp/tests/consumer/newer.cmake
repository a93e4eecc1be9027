# Asks for what is not installed.
find_package(adexport 0.2 REQUIRED)
