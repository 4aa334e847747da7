"""The real-process campaign: starts a service, breaks its workers under load and reports."""

from deploy.chaos.campaign import CampaignConfig, campaign
from deploy.chaos.command import run
from deploy.chaos.report import Report

__all__ = ["CampaignConfig", "Report", "campaign", "run"]
