"""Who acts and what is acted on. Ids are strings here so that every data set fits."""

from feast import Entity, ValueType

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="Whose behaviors these are")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="What is rated")
