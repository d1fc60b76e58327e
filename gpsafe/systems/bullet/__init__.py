"""Pendulum, cart-pole and drone in PyBullet (extra "bullet"), loaded only when one is made."""

from gpsafe.systems.bullet.plant import BulletPlant

__all__ = ["BulletPlant"]
