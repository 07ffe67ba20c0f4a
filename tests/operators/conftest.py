"""A browser for operators' trials."""

from tests.browser.conftest import browser, chromium, page

__all__ = ["browser", "chromium", "page"]
