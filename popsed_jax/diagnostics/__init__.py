"""Can what was inferred be believed?"""
