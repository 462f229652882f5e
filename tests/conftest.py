from sstkern.engines import interpreting

if interpreting():
    from interpreter import patch_language_once

    patch_language_once()
