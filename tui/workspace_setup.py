"""Making a workspace: the default settings and the folders, nothing that is there is touched."""

from __future__ import annotations

from pathlib import Path

from trainer_tui.safety import config_edit, durable
from trainer_tui.safety.errors import Refused
from trainer_tui.safety.workspace import CONFIG_NAME, Workspace


def make_workspace(folder: Path, model: str = "", **settings: object) -> Workspace:
    """Create `folder` with a commented config.toml, inbox/ and models/.

    Args:
        model: a hub id, or a folder that holds a model.
        settings: keys to set besides, dots written as `__`.

    Raises:
        Refused: there is a workspace already.
    """
    root = folder.expanduser().absolute()
    space = Workspace(root)
    if space.config_file.exists():
        raise Refused(f"{root} is a workspace already", f"its settings: {root / CONFIG_NAME}")
    values = {key.replace("__", "."): value for key, value in settings.items()}
    if model:
        values |= model_values(model)
    text = config_edit.edited(config_edit.default_text(), values, space.config_file)
    durable.make_directory(root, 0o755)
    space.prepare()
    durable.replace(space.config_file, text.encode())
    return space


def model_values(model: str) -> dict[str, object]:
    path = Path(model).expanduser()
    if path.is_dir():
        return {"model_name": path.name, "base_model": str(path.absolute())}
    return {"model_name": model, "base_model": f"models/{model.rsplit('/', 1)[-1]}"}
