"""Can an outsider tell that tracks were trained on?"""
