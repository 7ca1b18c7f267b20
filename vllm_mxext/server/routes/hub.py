"""Routes of the hub: NVIDIA NIM's about model, license, manifest and version, and ours about choice and store."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from vllm_mxext.server.context import ServerContext, package_version, version_report
from vllm_mxext.server.hub_documents import (
    cache_document,
    license_document,
    manifest_document,
    metadata_document,
    profiles_document,
)
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.middleware.paths import DOWNLOADS_PATH, VERSION_PATH
from vllm_mxext.server.routes.statuses import ANY


def hub_router(context: ServerContext) -> APIRouter:
    """Returns the routes."""
    router, hub = APIRouter(tags=["hub"]), context.hub

    @router.get("/v1/metadata", responses=ANY)
    async def metadata() -> Response:
        """Says which model is served, from where, under which license, and by which profile."""
        model = await hub.model()
        return json_response(await asyncio.to_thread(metadata_document, model, package_version()))

    @router.get("/v1/license", responses=ANY)
    async def model_license() -> Response:
        """Returns the model's license: its name, where it is, and the text if the model has it in a file."""
        return json_response(await asyncio.to_thread(license_document, await hub.model()))

    @router.get("/v1/manifest", responses=ANY)
    async def manifest() -> Response:
        """Returns the model's entry in its manifest, and the manifest's text if it is a file."""
        return json_response(await asyncio.to_thread(manifest_document, await hub.model()))

    @router.head(VERSION_PATH, include_in_schema=False)
    @router.get(VERSION_PATH, responses=ANY)
    async def version() -> Response:
        """Names the versions of the server and of this description, also while the model is loading."""
        return json_response(version_report())

    @router.get("/v1/hub/profiles", responses=ANY)
    async def profiles() -> Response:
        """Lists the model's profiles: which was chosen, by which rules, why others lost, and what each would take."""
        selection, hardware = await hub.judged()
        return json_response(await asyncio.to_thread(profiles_document, selection, hardware))

    @router.head(DOWNLOADS_PATH, include_in_schema=False)
    @router.get(DOWNLOADS_PATH, responses=ANY)
    async def downloads() -> Response:
        """Says how far the download of the model is or what it came to, also while the model is loading."""
        return json_response(hub.downloads.listing())

    @router.get("/v1/hub/cache", responses=ANY)
    async def cache() -> Response:
        """Lists the stored models with sizes and pins, and how much room is left."""
        return json_response(await asyncio.to_thread(cache_document, hub.store_folder))

    return router
